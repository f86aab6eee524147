"""DICOM: file -> slice -> series. Every quirk of the format ends here."""
