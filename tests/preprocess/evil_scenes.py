"""A reader of scenes that hangs, loaded in the decoding child."""

import time

from quicksviewer.preprocess.scenes import SceneReader


class HangingScenes(SceneReader):
    def _scenes(self):
        time.sleep(600)
