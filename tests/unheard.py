"""How much work is done without asking whether to go on, for tests of interrupts."""

import threading


class Unheard:
    """Counts calls of chosen functions between two calls of :meth:`on_step`, in the thread that makes it."""

    def __init__(self):
        self.now, self.most, self._thread = 0, 0, threading.current_thread()

    def counted(self, function):
        def counting(*arguments, **options):
            if threading.current_thread() is self._thread:
                self.now += 1
                self.most = max(self.most, self.now)
            return function(*arguments, **options)

        return counting

    def on_step(self, done, total):
        self.now = 0
