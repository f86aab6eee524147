"""How the library installs. Bounds are loose here; requirements.txt pins the versions that the tests run with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "lumbar_utils/__init__.py").read_text("utf-8"), re.M)[1]

CORE = [
    "torch>=2.6",
    "torchvision>=0.21",
    "timm>=1.0.15",
    "timm-3d>=1.0.1",
    "pydicom>=3.0",
    "numpy>=2.0",
    "pandas>=2.2",
    "scipy>=1.13",
    "scikit-learn>=1.5",
    "joblib>=1.5",
    "threadpoolctl>=3.5",
    "safetensors>=0.4.3",
    "albumentations==2.0.8",  # the last release under the MIT licence
    "tqdm>=4.66",
    "matplotlib>=3.8",
    "pillow>=10.3",
    "jinja2>=3.1",
    "markupsafe>=2.1",
]
EXTRAS = {
    "decoders": ["python-gdcm>=3.0.24", "pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.4"],
    "sr": ["highdicom>=0.26"],
    "notebooks": ["ipywidgets>=8.1", "ipyevents>=2.0", "ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"],
    "test": [
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "mypy>=1.11",
        "filelock>=3.12",
        "accelerate>=1.10",
        "selenium>=4.20",
        "dask[distributed]>=2024.12",
    ],
    "kaggle": ["kaggle>=2.0", "six>=1.16"],
    "benchmarks": ["monai>=1.4", "SimpleITK>=2.3", "psutil>=5.9"],
    "dev": ["ruff>=0.9", "pre-commit>=3.7"],
}
EXTRAS["all"] = sorted({name for names in EXTRAS.values() for name in names})

setup(
    name="lumbar_utils",
    version=VERSION,
    description="Grade lumbar spine MRI level by level: from DICOM folders to the RSNA 2024 submission",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="lumbar_utils contributors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["lumbar_utils", "lumbar_utils.*"]),
    package_data={
        "lumbar_utils": ["py.typed", "weights/**/*.safetensors", "weights/**/*.json"],
        "lumbar_utils.viz": ["architecture.png"],
        "lumbar_utils.report": ["templates/*.html", "assets/*", "report.schema.json"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["lumbar = lumbar_utils.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
