"""The folder of a run: what lies in it, who holds it, how it stands, where the next run goes."""
