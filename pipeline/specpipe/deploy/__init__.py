"""After stage 3: what runs a packaged repository elsewhere (docker compose, Kubernetes)."""
