"""`cerebras-jais models` and `cerebras-jais config`: what the models are, and the YAML that trains them."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def models(name: str | None, as_json: bool) -> None:
    """List the 20 models of the family, or everything known of one.

    \b
      cerebras-jais models
      cerebras-jais models jais-adapted-70b-chat

    Every value is published, derived from published ones by a rule, or assumed for a reason; NAME says which and why.
    """
    import json

    from cerebras_jais.catalog.models import MODELS, find_model
    from cerebras_jais.catalog.tables import model_details, model_row, model_text, models_table

    if name is not None:
        model = find_model(name)
        click.echo(json.dumps(model_details(model), ensure_ascii=False) if as_json else model_text(model))
    else:
        click.echo(json.dumps([model_row(model) for model in MODELS]) if as_json else models_table())


@click.group()
def config() -> None:
    """Check, list, show, compare and write trainer YAML.

    NAME and FILE are a file, or a built-in config such as jais-family-590m/pretrain (`cerebras-jais config list`).
    """


@config.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--tokenizer", type=click.Path(exists=True, path_type=Path), metavar="DIR", help="Compare its vocabulary too."
)
@click.option("--lower", is_flag=True, help="Lower each phase too, as `cerebras-jais lower` does; takes minutes.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def check(files: tuple[Path, ...], tokenizer: Path | None, lower: bool, as_json: bool) -> int:
    """Check trainer YAML files before any machine is reserved; status 1 where something is wrong.

    \b
      cerebras-jais config check configs/tiny/jais.yaml

    Every line names file, line, key and remedy. Looked at: every key; backend, cluster options and flags; sequence
    lengths against model and data; muP's numbers; schedules against the length of the run; what CS systems demand of
    precision; loss_weight; the vocabulary; names of frozen tensors. Where the Model Zoo is installed, its own
    validation runs too. Data that is not on this machine, the tensors of the start checkpoint and the memory of the
    machine are not checked; a note says which.
    """
    import json

    from cerebras_jais.modelzoo.installed import modelzoo_is_installed, require_modelzoo

    if lower:
        require_modelzoo()
    zoo = modelzoo_is_installed()
    results = [(str(file), *check_file(file, tokenizer, modelzoo=zoo, lower=lower)) for file in files]
    failed = any(problems for _, problems, _ in results)
    if as_json:
        keys = ("file", "problems", "notes")
        found = [{**dict(zip(keys, result, strict=True)), "modelzoo": zoo} for result in results]
        click.echo(json.dumps(found, ensure_ascii=False))
        return int(failed)
    for name, problems, notes in results:
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
        if not problems:
            click.echo(f"{name}: ok{'' if zoo else ' (Model Zoo not installed: its validation was skipped)'}")
        for note in notes:
            click.echo(f"note: {name}: {note}")
    return int(failed)


@config.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_(as_json: bool) -> None:
    """List the configs there are for every model and phase, and the miniatures for a CPU."""
    import json

    from cerebras_jais.catalog.tables import preset_row, presets_table
    from cerebras_jais.catalog.yaml_files import presets

    click.echo(json.dumps([preset_row(r) for r in presets()]) if as_json else presets_table(presets()))


@config.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a config, with where its numbers come from beside them."""
    from cerebras_jais.catalog.yaml_files import open_config

    click.echo(open_config(name).text, nl=False)


@config.command()
@click.argument("ours", metavar="A")
@click.argument("theirs", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def diff(ours: str, theirs: str, as_json: bool) -> int:
    """Show what two configs say differently, key by key; status 1 where they do.

    \b
      cerebras-jais config diff jais-family-590m jais-family-1p3b
    """
    import json

    from cerebras_jais.catalog.tables import differences, shown
    from cerebras_jais.catalog.yaml_files import open_config
    from cerebras_jais.config.trainer import check_top

    files = [open_config(name) for name in (ours, theirs)]
    for file in files:
        check_top(file)
    found = list(differences(*(file.data for file in files)))
    if as_json:
        click.echo(json.dumps([{"key": k, "a": _plain(a), "b": _plain(b)} for k, a, b in found]))
    else:
        for key, a, b in found:
            click.echo(f"{key}: {shown(a)} -> {shown(b)}")
    return int(bool(found))


@config.command()
@click.argument("name", required=False)
@click.option("--output", type=click.Path(path_type=Path), help="File to write (with --all, the folder).")
@click.option("--stock", is_flag=True, help="With the Model Zoo's own model names, for a site without the plugin.")
@click.option(
    "--harness",
    metavar="TASKS",
    help="Have the Model Zoo evaluate on these tasks of lm_eval, with commas; card: the card's columns.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@click.option("--all", "everything", is_flag=True, help="Write every config; how configs/ is made.")
def write(
    name: str | None, output: Path | None, stock: bool, harness: str | None, overwrite: bool, everything: bool
) -> None:
    """Write a config to a file to edit and run.

    \b
      cerebras-jais config write jais-family-590m --output my.yaml
      cerebras-jais config write jais-adapted-7b/stage-2 --stock --output stage-2.yaml
      cerebras-jais config write jais-family-1p3b --harness card --output evaluated.yaml

    --stock names jais and llama instead of jais_family and jais_adapted, and refuses what those cannot do (freezing).
    """
    from cerebras_jais.atomic import write_text
    from cerebras_jais.catalog.stock_names import with_stock_names
    from cerebras_jais.catalog.yaml_files import find_preset, open_config, preset_yaml, write_configs
    from cerebras_jais.config.yaml_file import parse_yaml
    from cerebras_jais.errors import UserError
    from cerebras_jais.evaluate.suites import tasks_of

    if everything:
        if name or stock or harness:
            raise UserError("--all writes every config as it is; leave NAME, --stock and --harness out")
        paths = write_configs(output or Path("configs"))
        click.echo(f"{output or 'configs'}: {len(paths)} files")
        return
    if name is None:
        raise UserError("which one? Give a NAME of `cerebras-jais config list`, or --all")
    target = output or Path(f"{Path(name.removesuffix('.yaml')).name}.yaml")
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists; choose another --output or give --overwrite")
    if harness is None:
        file = open_config(name)
    else:
        tasks = ",".join(tasks_of("card")) if harness == "card" else harness
        file = parse_yaml(preset_yaml(find_preset(name), tasks), Path(name))
    write_text(target, with_stock_names(file) if stock else file.text)
    click.echo(str(target))


def check_file(
    name: str | Path, tokenizer: Path | None = None, *, modelzoo: bool = False, lower: bool = False
) -> tuple[list[str], list[str]]:
    """The problems of a YAML, a line for each, and notes; each kind of check runs where the one before found nothing.

    A checkpoint that cannot be read is a problem beside the others.

    Args:
        name: a file, or the name of a built-in config.
        tokenizer: a folder with tokenizer.json, whose vocabulary the model's must hold.
        modelzoo: whether the Model Zoo, which must then be installed, judges it too.
        lower: whether its phases are lowered too; needs the Model Zoo.

    Raises:
        UserError: the tokenizer cannot be read.
    """
    from cerebras_jais.catalog.reader import read_trainers
    from cerebras_jais.catalog.yaml_files import open_config
    from cerebras_jais.errors import UserError
    from cerebras_jais.launch.checks import check, notes_of, rate_notes
    from cerebras_jais.launch.start import plan_for_check
    from cerebras_jais.launch.surroundings import check_surroundings
    from cerebras_jais.launch.token_budget import token_notes

    try:
        file = open_config(name)
        configs = read_trainers(file)
    except UserError as error:
        return [str(error)], []
    launch, unreadable = plan_for_check(configs)
    problems, notes = check(launch.phases), list[str]()
    if not problems:
        notes += [*notes_of(configs), *rate_notes(launch.phases)]
        problems, more = check_surroundings(launch, tokenizer)
        notes += [*more, *token_notes(launch.phases)]
    problems = [*unreadable, *problems]
    if modelzoo and not problems:
        from cerebras_jais.modelzoo.validate import modelzoo_problems

        problems = modelzoo_problems(file)
    told = [file.message(problem) for problem in problems]
    if lower and not told:
        from cerebras_jais.modelzoo.lower.phase import phases_to_lower
        from cerebras_jais.modelzoo.lower.report import lower_phases, problems_of

        for found in lower_phases(file, phases_to_lower(file)):
            told += problems_of(found)
    return told, notes


def _plain(value: object) -> object:
    return None if value is ... else value
