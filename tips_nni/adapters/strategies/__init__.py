"""TIPS as a strategy of NNI: one-shot and multi-trial, on timm backbones and on model spaces of others."""
