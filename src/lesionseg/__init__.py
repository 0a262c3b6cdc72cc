"""Skin-lesion segmentation: what does fine-tuning a pretrained encoder buy over freezing it?"""

import os

# Threads that soon stop spinning when they wait: one training is as fast as with the default of
# 300,000 turns, and two on one machine share its cores instead of stopping each other dead.
# libgomp reads this when torch loads it.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
