"""What the language model answers: the parts of a reply, the code in it, and plans with their arithmetic."""
