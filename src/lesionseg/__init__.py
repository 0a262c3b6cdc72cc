"""Skin-lesion segmentation: what does fine-tuning a pretrained encoder buy over freezing it?"""

import os

# Make waiting threads stop spinning early: one training is as fast as with the default of
# 300,000 spins, and two on one machine share its cores instead of bringing each other to a halt.
# libgomp reads this when torch loads it.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
