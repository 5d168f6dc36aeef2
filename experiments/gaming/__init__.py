"""Gaming: pictures that are free weights, under one encoder and under batteries."""
