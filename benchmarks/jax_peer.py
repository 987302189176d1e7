"""JAX's side: reads one problem from stdin, compiles its meta-gradient, and runs it for every line that says so.

Runs in an environment of its own, so it imports nothing of this project. See `benchmarks.peers.JaxPeer`.
"""

import io
import json
import sys
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

setting = json.loads(sys.stdin.buffer.readline())
data = np.load(io.BytesIO(sys.stdin.buffer.read(setting["bytes"])))
if data["theta"].dtype == np.float64:
    jax.config.update("jax_enable_x64", True)
theta = jnp.asarray(data["theta"])
tasks = {key: jnp.asarray(data[key]) for key in ("support_x", "support_y", "query_x", "query_y")}
splits = np.cumsum(setting["sizes"])[:-1]


def network(u, x):
    params = [part.reshape(shape) for part, shape in zip(jnp.split(u, splits), setting["shapes"], strict=True)]
    for index in range(0, len(params), 2):
        x = x @ params[index].T + params[index + 1]
        if index + 2 < len(params):
            x = jnp.tanh(x)
    return x


def loss(u, x, y):
    return 0.5 * jnp.mean((network(u, x) - y) ** 2)


def end_of_flow(u, task):
    def field(_t, v, _args):
        return -jax.grad(loss)(v, task["support_x"], task["support_y"])

    if setting["tol"] is None:
        steps = round(setting["length"] / setting["step"])
        return jax.lax.scan(lambda v, _: (v + setting["step"] * field(0.0, v, None), None), u, length=steps)[0]
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Dopri5(), 0.0, setting["length"], None, u,
        stepsize_controller=diffrax.PIDController(rtol=setting["tol"], atol=setting["tol"]),
        adjoint=diffrax.RecursiveCheckpointAdjoint(), max_steps=4096,
    )  # fmt: skip
    return solution.ys[-1]


def task_loss(u, task):
    return loss(end_of_flow(u, task), task["query_x"], task["query_y"])


meta_gradient = jax.jit(lambda u, tasks: jnp.mean(jax.vmap(jax.grad(task_loss), in_axes=(None, 0))(u, tasks), axis=0))


def timed():
    begin = time.perf_counter()
    gradient = meta_gradient(theta, tasks).block_until_ready()
    return time.perf_counter() - begin, gradient


def say(answer):
    print(json.dumps(answer), flush=True)


say({"seconds": timed()[0]})
say({"jax": jax.__version__, "diffrax": diffrax.__version__})
for _line in sys.stdin.buffer:
    seconds, gradient = timed()
    say({"seconds": seconds, "gradient": np.asarray(gradient, dtype=np.float64).tolist()})
