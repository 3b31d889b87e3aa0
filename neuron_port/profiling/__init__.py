"""What a predicted timeline says about a kernel: time by source line, advice, a trace, a picture and a page."""
