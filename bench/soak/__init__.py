"""A long run under mixed load, with pushes and kills: does anything grow, and does everything come back?"""
