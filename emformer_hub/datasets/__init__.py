"""Volumes to learn from and to share: tables of them, public ones, and sets on the Hub."""
