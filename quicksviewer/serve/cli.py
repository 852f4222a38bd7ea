"""Chat in a terminal, with images and videos.

    python -m quicksviewer chat --model-path output/quickstart/stage3 --context video.mp4
    python -m quicksviewer chat --model-path DIR --context a.mp4 b.png "What happens?"     one answer, then
    the prompt

In the prompt a path of an image or a video shows it with the next question, `/help` lists the commands,
Ctrl-C ends an answer, `exit` or Ctrl-D ends the chat (docs/chat.md).
"""

import argparse
import sys

import torch
from rich.markup import escape

from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.dialogue import parse_dialogue
from quicksviewer.serve.prompt import console, converse, list_cubes
from quicksviewer.serve.session import ChatSession
from quicksviewer.utils.data_util import MediaError


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a medium could not be used, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        decoding = decoding_of(args)
        given = parse_dialogue(args.context)
        session = ChatSession(load(args), decoding)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        begin(session, given)
        if args.showcase:
            return showcase(session, args.showcase, args.ask)
        if args.ask:
            for question in args.ask:
                answer(session, question)
            return 0
        return converse(session)
    except (MediaError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer chat", description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument("--context", nargs="*", default=[], help="media and turns to begin with")
    parser.add_argument("--ask", nargs="+", default=[], help="ask these questions and end")
    parser.add_argument(
        "--showcase", metavar="PNG", help="write a picture of the video and its cubes, and end"
    )
    return parser


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, what it sees and how its answers are drawn: the same for the terminal and the page."""
    parser.add_argument("--model-path", required=True, help="checkpoint folder, full or LoRA")
    parser.add_argument("--model-base", help="language model of a LoRA checkpoint, if it was moved")
    parser.add_argument("--video_nframes", type=int, help="most frames of a video (default: as trained)")
    parser.add_argument("--video_fps", type=float, help="frames per second (default: as trained)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=Decoding.max_new_tokens)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def decoding_of(args) -> Decoding:
    """How answers are drawn, from the flags. Raises ValueError."""
    return Decoding(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
        num_beams=args.num_beams,
        seed=args.seed,
    )


def load(args):
    """The model, with the media settings that were given in place of the trained ones."""
    from dataclasses import replace

    from quicksviewer.model.builder import load_pretrained_model

    loaded = load_pretrained_model(
        args.model_path, args.model_base, args.device, load_4bit=args.load_4bit, load_8bit=args.load_8bit
    )
    changes = {"fps": args.video_fps, "max_frames": args.video_nframes}
    changes = {name: value for name, value in changes.items() if value is not None}
    return replace(loaded, processor=loaded.processor.with_media(**changes))


def begin(session: ChatSession, given) -> None:
    """Bring a session to where the command line's context ends; a last question is answered."""
    media = iter(given.media)
    for turn in given.turns:
        for _, path in (next(media) for _ in range(turn.text.count("<image>") + turn.text.count("<video>"))):
            session.see(path)
        if turn is given.turns[-1] and turn.role == "user":
            answer(session, _without_marks(turn.text))
        else:
            session.encode()
            session.dialogue = session.dialogue.say(_without_marks(turn.text))
    for _, path in given.waiting:
        session.see(path)


def _without_marks(text: str) -> str:
    return text.replace("<image>\n", "").replace("<video>\n", "")


def answer(session: ChatSession, question: str) -> str:
    """Ask, and print the answer while it comes."""
    console.print(f"[bold]> {escape(question)}[/bold]")
    text = session.ask(question, lambda piece: print(piece, end="", flush=True))
    print()
    return text


def showcase(session: ChatSession, path: str, questions: list[str]) -> int:
    """Ask about the video of the context; show frames, cubes and answers here and as a picture."""
    from quicksviewer.serve.strip import cube_spans, save_strip

    if len(session.media) != 1 or not session.media[0].is_video:
        raise ValueError("--showcase needs one video in --context")
    lines = [f"{question}  {' / '.join(answer(session, question).splitlines())}" for question in questions]
    video = session.media[0]
    spans = cube_spans(session.encode().cuts.cube_of_frame)
    console.print(f"{len(video.pixels)} frames, {len(spans)} cubes:")
    list_cubes(video.times, spans)
    save_strip(path, video.pixels, video.times, spans, lines)
    console.print(f"picture written to {escape(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
