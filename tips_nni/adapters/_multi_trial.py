"""TIPS as a multi-trial strategy of NNI."""

from nni.nas.strategy import Strategy


class TIPSSearch(Strategy):
    """Not there yet."""
