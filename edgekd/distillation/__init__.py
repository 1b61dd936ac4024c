"""Knowledge from a teacher into a student: what is tapped, how it is compared, and the loop that trains.

    losses/         pure functions (student, teacher, batch) -> scalar, and LOSSES, the table that names them
    knowledge.py    Knowledge = student taps + teacher taps + adapter + loss + weight, and their total
    adapters.py     what learns beside the student, so that shapes meet; bank.py: CRD's memory
    balancing.py    how weighted losses become one
    fitting.py      adapters made for two networks, and every loss tried once before the first step
    views.py        augmentation as a pure function of (sample, view, seed): the same for teacher and student
    teachers.py     where knowledge comes from
    arithmetic.py   bf16 and memory layout, where they pay
    optimization.py optimizer, schedule, averaged weights
    checkpoints.py  weights and training states in safetensors
    loop.py         the one training loop

The scheme is offline: a frozen teacher, whose outputs are cached by view. A new method is one function in
`losses/` and one line in its table; a teacher of another kind is one more function in `teachers.py` that gives
outputs by tap; who trains when belongs to `loop.py`'s `Lesson`.
"""
