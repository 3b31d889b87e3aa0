"""Parts of `benchmarks/aws_suite.py`: stand-ins for private packages, repairs of the public tree, a pytest plugin."""
