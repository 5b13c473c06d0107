"""Image: what the launch backend needs built beforehand."""
