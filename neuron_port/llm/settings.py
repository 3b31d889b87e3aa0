"""Where OpenAI is, how long to wait for a language model, and how little a probe asks."""

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_SECONDS = 20.0
# A reasoning model may think for minutes before its first word, and says nothing meanwhile.
IDLE_TIMEOUT_SECONDS = 300.0
TOTAL_TIMEOUT_SECONDS = 1800.0
PROBE_OUTPUT_TOKENS = 16  # some endpoints take no smaller limit
