"""The run pages: a small server, a process of its own, that draws runs from their folders.

    run folder (metrics.jsonl, telemetry/, events.jsonl, experience/)
        └─▶ Library ─▶ RunView ─▶ a page's values ─▶ template ─▶ Drawings ─▶ aiohttp
                                                                           ├─▶ browser
                                                                           └─▶ Ray dashboard

It reads alone. Nobody waits for it: it may be killed at any time, and the run goes on.
"""
