"""After stage 3: writes the files that run a packaged repository with docker compose or Kubernetes.

Not here: anything that starts a server (`serve`).
"""
