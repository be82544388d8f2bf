"""Pictures by Stable Diffusion, on diffusers."""
