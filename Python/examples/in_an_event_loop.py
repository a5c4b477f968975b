"""Makes videos in a program that does other things meanwhile, and gives up on one that takes too long."""

import asyncio

import turbodiffusion_swift as td


async def main() -> None:
    pipe = td.Pipeline("nano", num_steps=1, size=(128, 80))
    short = await pipe.generate("A green cone spins in place on a wooden floor.", num_frames=5)
    print("made:", short)
    try:
        # On a card this would be quick enough; cancelling the task ends the run.
        await asyncio.wait_for(pipe.generate("A green cone spins in place.", num_frames=509), timeout=1)
    except asyncio.TimeoutError:
        print("given up after a second")


asyncio.run(main())
