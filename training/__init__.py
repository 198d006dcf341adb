"""Data and training of the embedded models: seeded, resumable, on a CPU only. Not part of the wheel.

python -m venv build/train/venv && build/train/venv/bin/pip install -r training/requirements.txt
apt-get install espeak-ng wamerican wordnet-base   # and, for the vision model, the fonts of vision/rendering.py
build/train/venv/bin/python -m training --help
"""
