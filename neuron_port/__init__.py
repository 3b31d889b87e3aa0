"""neuron-port moves a Hugging Face model to AWS Trainium and Inferentia, and proves that it is right."""

__version__ = "0.1.0"
