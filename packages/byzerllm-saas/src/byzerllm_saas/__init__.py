"""Hosted models: one module per vendor under `byzerllm_saas.providers`.

A vendor's module is its plugin. It is light: what it needs to talk to the vendor is imported when a
model is deployed. `CONTRIBUTING-PROVIDERS.md` beside the package shows how a module looks.
"""
