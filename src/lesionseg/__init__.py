"""Skin-lesion segmentation: what does fine-tuning a pretrained encoder buy over freezing it?"""
