"""The synthetic cohort: person -> body -> tissue -> signal -> scanner -> DICOM files and tables.

Nothing is exported here, so that importing one step never pulls in the others.
"""
