"""The functions of ``import bertsmith as bs``, with settings as keyword arguments."""
