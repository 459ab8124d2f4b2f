__all__ = ['ttypes', 'constants', 'Calculator', 'Store']
