"""DICOM: file (`parsing`) -> slice (`headers`, `pixels`) -> series (`parts`, `series`); quirks of the format end here.

The reader trusts no file. What it guards against, and where:

- lengths, nesting and numbers of elements that would take all memory or time: `parsing` cuts reads to what is there,
  counts them, and inflates no bombs; `plain_files` leaves whatever is odd to that slow path;
- sizes of images, and compressed bytes that cannot hold them: `elements.check_image` and `pixels`, before any memory
  is taken for them;
- decoders in native code that crash or hang on damaged streams: `decoding` keeps them in a process of their own;
- values that are no numbers, or lie in no scanner: `elements` and `headers` raise `DicomError`, and nothing else;
- text that forges lines, turns them round or hides in them: `elements.printable`;
- images in one series that do not belong together: `acquisitions` tells them apart, `parts` takes them apart;
- names, numbers and dates of patients: `identity.without_identity` takes them out of all that is kept.

`tools/fuzz_reader.py` tries it with any number of damaged files.
"""
