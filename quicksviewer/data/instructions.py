"""What a person might ask for in order to get a caption: they turn a captioned medium into a conversation.

The wording fits one picture as well as several.
"""

import random

INSTRUCTIONS = {
    "image": (
        "Describe what is shown here.",
        "What can be seen here?",
        "Put into words what you see.",
        "Write a caption for this.",
        "Tell me what this shows.",
        "Give a short account of what is in view.",
        "How would you describe this to someone who cannot see it?",
        "What is going on here?",
        "Summarise the visible content.",
        "Say what stands out here.",
        "Please explain what is depicted.",
        "What would be a fitting caption?",
    ),
    "video": (
        "Describe what happens in the video.",
        "What can be seen in this clip?",
        "Tell the story of the video from start to end.",
        "Write a caption for this clip.",
        "What takes place here, and in which order?",
        "Sum up the video.",
        "Put the events of the clip into words.",
        "How would you retell this video to someone who has not watched it?",
        "Give a short account of the recording.",
        "What goes on in this footage?",
        "Please explain what the clip shows.",
        "Say what this video is about.",
    ),
}


def pick_instruction(kind: str, uid: str) -> str:
    """An instruction for a medium of this kind ("image" or "video"); the same for the same uid, always."""
    return random.Random(uid).choice(INSTRUCTIONS[kind])
