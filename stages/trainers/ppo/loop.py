"""The PPO loop: sample, score, estimate advantages, update; exact resume at every iteration boundary."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from pipeline.contract import StageContext, StageResult
from pipeline.errors import Interrupted
from stages.ops.kl import adapted_kl_coef
from stages.ppo import PPOConfig
from stages.runtime.adapters import save_adapter
from stages.runtime.computing import computing_of
from stages.runtime.ranks import Ranks
from stages.runtime.saving.checkpoints import CheckpointFolder, checkpoint_key
from stages.trainers.ppo.metrics import rollout_metrics, update_metrics
from stages.trainers.ppo.monitor import NAMES as ALARM_NAMES
from stages.trainers.ppo.monitor import find_alarms
from stages.trainers.ppo.plan import learning_rate_factor, minibatches, prompts_of, sampling_generator
from stages.trainers.ppo.proof import prove_reference_on, prove_start
from stages.trainers.ppo.roles import POLICY, VALUE
from stages.trainers.ppo.rollout import Readings, Rollouts, read_rollouts, sample_rollouts
from stages.trainers.ppo.rollout_file import RolloutFile
from stages.trainers.ppo.scores import Scores, score_rollouts
from stages.trainers.ppo.setting import Setting, open_setting
from stages.trainers.ppo.state import BestPolicy, PPOCheckpoints, PPOState
from stages.trainers.ppo.update import UpdateSums, make_optimizer, make_targets, update

LOGGER = logging.getLogger(__name__)


def train_ppo(ctx: StageContext) -> StageResult:
    """Train a copy of the SFT policy with PPO and write it and its value function.

    Raises:
        ConfigError: there is no reward, or settings do not fit the inputs.
        HandOverError: at step 0 the policy is not its parent, the reference or itself.
        Interrupted: the stage was asked to stop; the last finished iteration was saved first.
        StageFailed: a loss is not finite.
    """
    # 1. One frozen base, four adapters; prove that training starts from the parent.
    setting = open_setting(ctx)
    config, roles, ranks = setting.config, setting.roles, setting.ranks
    handover = prove_start(ctx.inputs["policy"], ctx.inputs.get("reward"), roles)
    optimizer = make_optimizer(roles, config)

    # 2. Go on from the newest whole checkpoint.
    folder = CheckpointFolder(ctx.scratch_dir / "checkpoints", checkpoint_key(ctx))
    best = BestPolicy(roles)
    checkpoints = PPOCheckpoints(folder, roles, optimizer, best, ranks=ranks)
    state = checkpoints.restore(PPOState(kl_coef=config.kl_coef))
    kept = RolloutFile(
        ctx.scratch_dir / "rollouts", setting.prompts[: config.rollout_prompts], finished=state.iteration
    )

    while state.iteration < config.iterations and not state.stopped:
        began = time.perf_counter()
        # 3. Sample responses, and ask every role about them in the micro-batches of the first pass.
        rollouts, readings = gather(setting, state.iteration)
        if state.iteration == 0:
            prove_reference_on(rollouts, readings, roles)
        # 4. Score them, and turn scores into advantages and returns.
        scores = score_rollouts(
            rollouts,
            readings,
            config,
            chat=setting.chat,
            sources=setting.sources,
            moments=state.moments,
        )
        targets = make_targets(readings, scores.shaped, rollouts.mask, config, kl_coef=state.kl_coef)
        metrics = rollout_metrics(rollouts, readings, scores, targets, kl_coef=state.kl_coef)
        if config.keep == "best" or config.on_alarm == "stop":
            best.offer(state, metrics)
        if ranks.is_main:
            kept.append(state.iteration, rollouts, readings, scores=scores, chat=setting.chat)
        # 5. Update the policy and the value function.
        number = state.iteration
        sums = update(roles, optimizer, rollouts, readings, targets, config, iteration=number, ranks=ranks)
        metrics |= update_metrics(sums)
        # 6. Carry over, look for trouble, log, save, stop if asked.
        _advance(state, config, scores, metrics, sums)
        metrics |= _watch(ctx, state)
        tokens = sums.num_tokens + (1 + roles.num_readers) * sum(rollouts.total_lengths)
        state.num_tokens += tokens
        _log(ctx, state, metrics, seconds=time.perf_counter() - began, tokens=tokens)
        _save_or_stop(ctx, state, checkpoints, ranks)

    checkpoints.prove_equal()
    if not ranks.is_main:
        return StageResult({})
    if state.stopped or config.keep == "best":
        best.put_back()
    result = _result(ctx, setting, state, handover, checkpoints.notes)
    if config.rollout_prompts:
        samples = kept.write_samples(ctx.output_dir / "rollouts")
        return replace(result, outputs={**result.outputs, "rollouts": samples})
    return result


def gather(setting: Setting, iteration: int) -> tuple[Rollouts, Readings]:
    """Sample an iteration's rollouts and read them."""
    config = setting.config
    chosen = prompts_of(
        iteration,
        num_prompts=len(setting.prompts),
        batch_size=config.rollout_batch_size,
        seed=config.seed,
        group_size=config.group_size,
    )
    rollouts = sample_rollouts(
        setting.roles,
        [setting.prompts[row] for row in chosen],
        config,
        backend=setting.backend,
        stop_token_ids=setting.chat.stop_token_ids,
        generator=sampling_generator(config.seed, iteration),
    )
    ranks = setting.ranks
    plan = minibatches(rollouts.total_lengths, config, iteration=iteration, epoch=0, ranks=ranks.count)
    # Each rank reads what it will train on first.
    readers = ranks.readers
    micro_batches = [micro for minibatch in plan for micro in readers.share(minibatch)]
    return rollouts, read_rollouts(setting.roles, rollouts, micro_batches, ranks=readers)


def _advance(
    state: PPOState, config: PPOConfig, scores: Scores, metrics: dict[str, float], sums: UpdateSums
) -> None:
    if config.kl_target is not None:
        state.kl_coef = adapted_kl_coef(
            state.kl_coef,
            metrics["objective/kl"],
            target=config.kl_target,
            horizon=config.kl_horizon,
            num_episodes=config.rollout_batch_size,
        )
    state.moments = scores.moments
    state.episodes += config.rollout_batch_size
    state.optimizer_steps += sums.steps
    state.finish_iteration(metrics)


def _watch(ctx: StageContext, state: PPOState) -> dict[str, float]:
    """Raise alarms, each once, and end the training on one if the settings say so; return all as metrics."""
    config: PPOConfig = ctx.config
    found = find_alarms(state.first, state.recent, max_kl=config.alarm_kl)
    for alarm in found:
        if alarm.name not in state.alarms:
            state.alarms[alarm.name] = f"alarm after iteration {state.iteration}: {alarm.message}"
            LOGGER.warning("%s", state.alarms[alarm.name])
    state.stopped = bool(found) and config.on_alarm == "stop"
    names = {alarm.name for alarm in found}
    return {f"alarm/{name}": float(name in names) for name in ALARM_NAMES}


def _log(
    ctx: StageContext, state: PPOState, metrics: dict[str, float], *, seconds: float, tokens: int
) -> None:
    config: PPOConfig = ctx.config
    text = f"score {metrics['objective/scores']:.3f}, kl {metrics['objective/kl']:.3f}"
    ctx.logger.progress(state.iteration, config.iterations, text)
    last = state.iteration == config.iterations or state.stopped
    if state.iteration % config.logging_steps and not last:
        return
    line = {
        **metrics,
        "lr": config.learning_rate * learning_rate_factor(state.iteration - 1, config),
        "episode": float(state.episodes),
        "eps": config.rollout_batch_size / max(seconds, 1e-9),
        "num_tokens": float(state.num_tokens),
        "tokens_per_second": tokens / max(seconds, 1e-9),
    }
    ctx.logger.log(line, step=state.iteration)


def _save_or_stop(ctx: StageContext, state: PPOState, checkpoints: PPOCheckpoints, ranks: Ranks) -> None:
    """Save at the settings' rhythm, and before an interruption.

    Raises:
        Interrupted: the stage was asked to stop and iterations are left.
    """
    config: PPOConfig = ctx.config
    requested = ranks.any(ctx.stop.requested)
    stop = requested and state.iteration < config.iterations and not state.stopped
    if stop or state.iteration % config.save_steps == 0:
        checkpoints.save(state)
    if stop:
        raise Interrupted(
            f"ppo was stopped after iteration {state.iteration} of {config.iterations}; it is saved",
            where=ctx.name,
            hint="run the same command again to go on",
            code="interrupted",
        )


def _result(
    ctx: StageContext,
    setting: Setting,
    state: PPOState,
    handover: dict[str, float],
    notes: Sequence[str],
) -> StageResult:
    roles, base = setting.roles, ctx.inputs["base"]
    outputs = {
        "adapter": save_adapter(
            roles.model, ctx.output_dir / "adapter", name=POLICY, base=base, tokenizer=setting.tokenizer
        ),
    }
    if roles.value_head is not None:
        outputs["value"] = save_adapter(
            roles.model,
            ctx.output_dir / "value",
            name=VALUE if roles.value_on == "adapter" else POLICY,
            base=base,
            tokenizer=setting.tokenizer,
            head=roles.value_head.tensors(),
        )
    metrics = {
        **state.final_metrics(),
        **handover,
        "ppo/iterations": float(state.iteration),
        "ppo/episodes": float(state.episodes),
        "ppo/optimizer_steps": float(state.optimizer_steps),
        "ppo/dropped_prompts": float(setting.dropped),
        "ppo/alarms": float(len(state.alarms)),
    }
    kept = []
    if state.best_score is not None and (state.stopped or setting.config.keep == "best"):
        metrics |= {"ppo/best_score": state.best_score, "ppo/best_iteration": float(state.best_iteration)}
        kept = [f"the policy is the one after iteration {state.best_iteration} of {state.iteration}"]
    padded = [f"rows were padded: {roles.unpacked_because}"] if roles.unpacked_because else []
    dropped = [f"{setting.dropped} prompts were too long and set aside"] if setting.dropped else []
    config = setting.config
    packed = roles.unpacked_because is None
    computing = computing_of(roles.model, config.model, config.tuning, packed=packed)
    said = (*notes, *padded, *dropped, *state.alarms.values(), *kept)
    return StageResult(outputs, metrics, said, computing=computing)
