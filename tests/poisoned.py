"""A stage actor whose process exits on a certain run of tokens, and a controller of such actors.

In a module of their own, which Ray's workers can import.
"""

import os

from medha_actors.actors.controller import Controller
from medha_actors.actors.stage import StageActor
from medha_actors.messages import pack_tokens

POISON = pack_tokens([255, 254, 255])  # a decode's span is one token: nobody draws it


class Poisoned(StageActor):
    """Computes like any other until then."""

    def load(self, packed_plan):
        resident = super().load(packed_plan)
        stage = self._ready().stage
        step = stage.step

        def deadly(message, hidden, exchange):
            if any(POISON in span.token_ids for span in message.spans):
                os._exit(1)
            return step(message, hidden, exchange)

        stage.step = deadly
        return resident


class PoisonedController(Controller):
    stage_class = Poisoned
