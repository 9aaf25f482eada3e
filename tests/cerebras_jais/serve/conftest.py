"""Where OpenAI's client is not installed, what it asks is not collected: a skip is a failure of `make test-marked`."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("openai") else ["test_openai_client.py", "test_process.py"]
