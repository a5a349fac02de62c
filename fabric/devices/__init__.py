"""Devices as a run meets them: what is here, the profile that fits it, and opening one by both.

Leans on fabric.core and fabric.models; the flags of a command come before what a profile says.
"""
