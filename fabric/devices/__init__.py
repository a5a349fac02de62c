"""Devices as a run meets them: what is here, the profile that fits it, and opening one by both.

Leans on fabric.core; the flags of a command come before what a profile says (fabric/training, fabric/evaluation).
"""

from fabric.devices.profiles import DEFAULT, KEYS, Key, Profile, places, profile_of, read_profile, shipped_profiles

__all__ = ["DEFAULT", "KEYS", "Key", "Profile", "places", "profile_of", "read_profile", "shipped_profiles"]
