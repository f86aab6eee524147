#!/usr/bin/env bash
# Two programs that some tests judge with and that pip cannot install: Chromium opens the reports, dciodvfy (of
# dicom3tools) reads the structured reports. On Debian or Ubuntu as root they are installed; elsewhere, or when that
# fails, those tests skip and say what is absent.
set -uo pipefail
lacking=()
command -v chromium >/dev/null || command -v google-chrome >/dev/null || lacking+=(chromium)
command -v chromedriver >/dev/null || lacking+=(chromium-driver)
command -v dciodvfy >/dev/null || lacking+=(dicom3tools)
[ ${#lacking[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed, so some tests will skip: ${lacking[*]} (Debian: apt-get install ${lacking[*]})" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
timeout 300 apt-get update -qq >/dev/null &&
    timeout 600 apt-get install -y -qq --no-install-recommends "${lacking[@]}" >/dev/null ||
    echo "Could not be installed, so some tests will skip: ${lacking[*]}" >&2
exit 0
