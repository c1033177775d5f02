"""How Kubernetes is spoken to: kubeconfig and credentials, typed partial objects, requests, list and watch."""
