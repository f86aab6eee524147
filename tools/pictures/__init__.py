"""The pictures of the README, each a function that returns a figure; `make_images.py` saves them."""
