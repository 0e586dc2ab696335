"""The client of OpenAI's HTTP API, behind the interface of `serve/client.py`.

Not here: what distinguishes the servers of several engines (`engine/openai_models.py`).
"""
