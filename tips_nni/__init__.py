"""Anytime neural networks from timm backbones by topologically important path sampling (TIPS)."""

__version__ = "0.1.0"
