"""Volumes to train on and to share: tables of volumes, public volumes, and sets on the Hub."""
