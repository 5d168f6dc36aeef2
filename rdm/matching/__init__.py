"""The mathematics.

Statistics of features, objectives over them, encoders, memories and balances. Knows no file and no command.
"""
