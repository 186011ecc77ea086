"""Every sample of a run, found by numbers, text and lineage: what a browser of samples reads.

    experience/*.parquet ─▶ files ─▶ columns ─▶ index (numpy, in memory) ─▶ query ─▶ a page of rows
                              └── prompt, reply, rewards: of the rows shown, or scanned in time ──┘

`browser.RolloutBrowser` is the one door. Nothing is ever written into the run folder, and no file
is read whole: footers and a few columns of numbers once, texts where they are shown or searched.
"""
