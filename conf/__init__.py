"""The configuration groups; a package so that an installed wheel carries them."""
