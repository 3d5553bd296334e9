"""Faults that are no bad input: what happens now, and the test that holds it. The second table of FAULTS.md."""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class OtherFault:
    """One thing that goes wrong elsewhere than in the words of a command."""

    wrong: str
    """The smallest input that brings it about."""
    now: str
    """What happens."""
    test: str
    """The test that holds it: `tests/FILE.py::NAME`."""

    def row(self) -> str:
        """Its line of the table."""
        wrong, now = (text.replace("|", "\\|") for text in (self.wrong, self.now))
        return f"| {wrong} | {now} | `{self.test}` |"

    def has_test(self) -> bool:
        """Whether that file has a test of that name."""
        file, _, name = self.test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


HEAD = ("## Faults that are no bad input", "", "| wrong | what happens now | test |", "|---|---|---|")
OTHER_FAULTS = (
    OtherFault(
        "`gc` in a store that also holds folders of others, and links",
        "it removes only what the store has named; links are not followed",
        "tests/trainables/store/test_store_command.py::test_a_collector_removes_only_what_a_store_has_named",
    ),
    OtherFault(
        "`gc --store` from a folder without `runs/`, or with another `--out`",
        "what any sweep needs stays: the store knows who uses it",
        "tests/trainables/store/test_store_command.py::test_every_sweep_that_uses_a_store_keeps_what_it_needs",
    ),
    OtherFault(
        "`gc` at a terminal",
        "it lists what would go and asks; no answer is a no",
        "tests/trainables/store/test_store_command.py::test_gc_asks_and_takes_no_answer_for_a_no",
    ),
    OtherFault(
        "`front/pareto.csv` names other trials than the records",
        "`gc` takes the front from the records",
        "tests/trainables/store/test_store_command.py::test_gc_keeps_front_teacher_and_controls_and_drops_the_rest",
    ),
    OtherFault(
        "`sweep.json` is empty, so that the front is unknown",
        "`gc` keeps the results of all trials",
        "tests/trainables/store/test_store_command.py::test_a_sweep_whose_front_is_unknown_needs_all_of_its_trials",
    ),
    OtherFault(
        "a table, page or picture is read, or the disk is full, while it is written again",
        "readers have the whole old file",
        "tests/analysis/pages/test_report.py::test_files_are_replaced_whole",
    ),
    OtherFault(
        "`gc` or `ls` after `runtimes.py`, whose records name no results",
        "both work",
        "tests/trainables/store/test_store_command.py::test_cells_of_the_runtime_table_stop_neither_gc_nor_ls",
    ),
    OtherFault(
        "another user of the machine connects to the Ray of a sweep",
        "refused: Ray asks for a token that is made for this sweep",
        "tests/sweeps/cluster/test_security.py::test_nobody_without_the_token_of_this_sweep_connects_to_its_ray",
    ),
    OtherFault(
        "another user looks for Ray's sockets and logs",
        "their folder is closed to others, and gone after the sweep",
        "tests/sweeps/cluster/test_security.py::test_nobody_else_enters_the_folder_of_its_sockets_and_logs",
    ),
    OtherFault(
        "another user asks the Ray of a sweep for its metrics, where `ray[default]` is installed",
        "nobody serves any",
        "tests/sweeps/cluster/test_security.py::test_a_local_ray_shows_its_metrics_to_nobody",
    ),
    OtherFault(
        'a manifest in the store says `"key": "../../victim"`, or an absolute path',
        "`gc` removes nothing there",
        "tests/trainables/store/test_store_command.py::test_a_manifest_that_names_another_place_removes_nothing_there",
    ),
    OtherFault(
        "a record names a module as its network",
        "nothing is imported; the cell says `add --models NAME`",
        "tests/trainables/stages/measuring/test_runtime_cell.py::test_a_record_alone_imports_nothing",
    ),
    OtherFault(
        "`model_name` in a stored `record.json` names another network",
        "a worker builds the network that the user named",
        "tests/trainables/records/test_encoding.py::test_a_result_that_was_moved_lies_where_it_is_found",
    ),
    OtherFault(
        "a copied sweep names a tracking server of somebody else",
        "`sync` does not connect; the user has to name it by `--tracking-uri`",
        "tests/analysis/test_sync.py::test_a_folder_from_elsewhere_does_not_choose_who_gets_the_credentials",
    ),
    OtherFault(
        "a file of a trial is a link to another file",
        "`export` refuses it by name and ships nothing",
        "tests/analysis/test_shipping.py::test_a_link_among_the_artifacts_is_not_followed",
    ),
    OtherFault(
        "files are links where `export` writes",
        "the links are replaced; what they point to stays",
        "tests/analysis/test_shipping.py::test_links_where_the_files_go_are_replaced_and_not_written_through",
    ),
    OtherFault(
        "PostScript in a `.jpg`",
        "no picture; Ghostscript is not started",
        "tests/trainables/stages/data/test_decoding.py::test_postscript_under_another_name_starts_no_program",
    ),
    OtherFault(
        "PostScript in a `.jpg` for `predict.py`",
        "no picture; Ghostscript is not started",
        "tests/analysis/test_shipping.py::test_predict_reads_the_formats_of_training_and_starts_no_program",
    ),
    OtherFault(
        "a tracking server answers with a picture's address",
        "the report shows it as text and loads no picture from elsewhere",
        "tests/analysis/pages/test_report.py::test_pictures_from_elsewhere_are_not_loaded",
    ),
    OtherFault(
        "rich markup, `:smile:` or escape codes in a text: `[red]x`, `[/x]`",
        "the terminal shows the text as it is, without control characters",
        "tests/analysis/reading/test_doors.py::test_a_text_is_printed_as_it_is",
    ),
    OtherFault(
        "several pictures of 30 million pixels each, of 0.1 MB",
        "decoded one at a time: less than 320 MB for four",
        "tests/trainables/stages/data/test_decoding.py::test_large_images_share_their_memory",
    ),
    OtherFault(
        "a password in `--tracking-uri`, on its way to the output or an error",
        "`***` stands in its place",
        "tests/trainables/config/test_escaping.py::test_a_password_is_hidden_and_nothing_else",
    ),
    OtherFault(
        "a password in `--tracking-uri`, in `pareto.html`, `report.html`, `report.md` and the exported README",
        "the address has no user and no password",
        "tests/analysis/pages/test_report.py::test_no_page_holds_the_password_of_the_tracking_server",
    ),
    OtherFault(
        "`state.pt` is cut, zeroed or changed anywhere",
        "set aside; the stage begins again",
        "tests/trainables/stages/training/test_checkpoints.py::test_no_damage_stops_a_stage_or_is_taken_for_weights",
    ),
    OtherFault(
        "any other file that is read from a disk is damaged",
        "read as it was, made again, or refused by one line",
        "tests/contracts/test_damage.py::test_damaged_files_are_answered",
    ),
    OtherFault(
        "OUT is moved or copied",
        "artifacts and records go to where it lies now",
        "tests/analysis/test_sync.py::test_a_sweep_that_was_moved_is_delivered_where_it_lies_now",
    ),
    OtherFault(
        "records wait for MLflow at the end of a sweep",
        "told with the command that delivers them; exit code 1",
        "tests/sweeps/running/test_outcome.py::test_records_that_wait_for_mlflow_are_counted_and_said",
    ),
    OtherFault(
        "`?` or `%` in OUT",
        "`mlflow.db` lies in OUT, and nothing beside it",
        "tests/trainables/tracking/test_tracker.py::test_a_folder_whose_name_is_no_address_holds_its_own_database",
    ),
    OtherFault(
        "two sweeps start at once in a fresh OUT",
        "both run; one of them makes the database",
        "tests/trainables/tracking/test_tracker.py::test_two_sweeps_that_start_at_once_make_one_database",
    ),
    OtherFault(
        "the MLflow experiment was deleted",
        "told with the command that brings it back",
        "tests/trainables/tracking/test_tracker.py::test_a_deleted_experiment_is_told_with_the_way_back",
    ),
    OtherFault(
        "`--storage` holds a sweep of the same name from another OUT",
        "its results are not taken, and not overwritten",
        "tests/sweeps/running/tune/test_recovery.py::test_another_sweep_of_the_name_in_the_storage_is_not_taken_for_this_one",
    ),
    OtherFault(
        "a trial's folder holds another configuration's record, as after a cut journal",
        "the folder is set aside; the trial runs",
        "tests/sweeps/running/tune/test_recovery.py::test_the_record_of_another_trial_under_the_same_number_is_not_taken",
    ),
    OtherFault(
        "a record changes after its delivery",
        "delivered again; `delivered.json` holds for one record only",
        "tests/trainables/tracking/test_tracker.py::test_a_folder_whose_record_has_changed_is_delivered_again",
    ),
    OtherFault(
        "a record of another sweep waits for delivery",
        "refused with that sweep's id",
        "tests/trainables/tracking/test_tracker.py::test_what_another_sweep_wrote_or_nobody_can_read_is_refused",
    ),
    OtherFault(
        "a journal is damaged in its middle",
        "it goes on from its sound part; the damaged one is kept",
        "tests/sweeps/search/test_study_file.py::test_a_journal_goes_on_from_its_sound_part_and_the_damaged_one_is_kept",
    ),
    OtherFault(
        "`train_images.npy` or `dataset.json` is empty, cut or zeroed",
        "the images are decoded again; trials go on",
        "tests/trainables/stages/data/test_prepared.py::test_damaged_images_are_decoded_again",
    ),
    OtherFault(
        "`store.json` of a sound store is empty or cut",
        "set aside and written again; no result is lost",
        "tests/trainables/store/test_results.py::test_a_damaged_mark_of_a_sound_store_is_written_again",
    ),
    OtherFault(
        "`record.json` of a finished trial is empty or cut",
        "set aside; the trial is made again under its number",
        "tests/sweeps/running/tune/test_recovery.py::test_a_finished_trial_whose_record_is_damaged_is_made_again_under_its_number",
    ),
    OtherFault(
        "`delivered.json` is empty or cut",
        "written anew; there is still one run",
        "tests/trainables/tracking/test_tracker.py::test_a_damaged_marker_of_delivery_is_written_anew",
    ),
    OtherFault(
        "`sweep.json` is empty or cut",
        "set aside and written again",
        "tests/sweeps/search/test_sweep_folder.py::test_a_damaged_description_is_written_again",
    ),
    OtherFault(
        "the first trials all fail with one reason",
        "the sweep stops and says the reason",
        "tests/sweeps/running/tune/test_recovery.py::test_a_sweep_whose_trials_all_fail_alike_stops_and_says_why",
    ),
    OtherFault(
        "trials failed, and the cause has been put right",
        "`--retry-failed` runs them again, also after a crash",
        "tests/sweeps/running/tune/test_recovery.py::test_failed_trials_run_again_if_asked_for_also_after_a_crash",
    ),
    OtherFault(
        "`forward` fails in training only, or export would fail after all epochs",
        "refused before anything is trained, by its line or by what it returned",
        "tests/trainables/stages/candidate/test_networks.py::test_refused_with_the_line",
    ),
    OtherFault(
        "a student is killed in its first step, every time",
        "no progress: it fails when its retries are used up",
        "tests/sweeps/running/tune/test_recovery.py::test_what_every_attempt_reports_again_is_no_progress",
    ),
    OtherFault(
        "a trial's process dies",
        "the reason is said on one line: killed, its node died, or its error",
        "tests/sweeps/running/tune/test_recovery.py::test_the_reason_of_a_failure_is_one_line",
    ),
    OtherFault(
        "a process of the local Ray is killed; SIGTERM goes to the whole process group",
        "the driver says so and ends within seconds",
        "tests/sweeps/cluster/test_interrupts.py::test_a_driver_whose_own_ray_dies_says_so_and_ends",
    ),
    OtherFault(
        "drivers, trials, nodes, raylet, agent and GCS are killed",
        "nothing lost, nothing twice, no hang",
        "tests/benchmarks/test_chaos.py::test_kills_of_every_kind_lose_and_double_nothing",
    ),
    OtherFault(
        "a network flips, shuffles or averages its channels, or flattens after `permute`",
        "refused by the layer's name: the cut network has to compute what the dense one does without those",
        "tests/trainables/stages/pruning/test_equivalence.py::test_what_reorders_or_mixes_channels_is_refused_with_a_layer_that_can_be_left_whole",
    ),
    OtherFault(
        "such a network as `--student-model`",
        "refused before the teacher is trained",
        "tests/sweeps/running/interface/test_command.py::test_a_network_whose_channels_cannot_be_followed_is_refused_before_training",
    ),
    OtherFault(
        "a layer cannot be cut, such as a gate of one channel, or loses another number than asked for, as a maxout",
        "it stands in `pruning.json`, and a warning names it",
        "tests/trainables/stages/pruning/test_equivalence.py::test_layers_that_cannot_be_cut_as_asked_for_are_recorded",
    ),
    OtherFault(
        "`nm_2_4` or `l1` on a network with weight norm",
        "refused by the layer's name: its weights keep no zeros",
        "tests/trainables/stages/pruning/test_zeros.py::test_computed_weights_are_refused_because_they_keep_no_zeros",
    ),
    OtherFault(
        "`taylor` under `--deterministic`, where the student comes from the store",
        "its gradients are deterministic",
        "tests/trainables/stages/pruning/test_cuts.py::"
        "test_gradients_are_as_deterministic_as_the_candidate_and_not_as_the_process_was_left",
    ),
    OtherFault(
        "`int8_qat` of a network with hooks and parametrisations of its own",
        "they survive",
        "tests/trainables/stages/export/test_fake_quantize.py::test_a_networks_own_hooks_and_normalised_weights_survive",
    ),
    OtherFault(
        "pictures are float TIFF, or 16-bit with small values",
        "read with their brightness",
        "tests/trainables/stages/data/test_decoding.py::test_floats_and_small_16_bit_values_are_not_black",
    ),
    OtherFault(
        "HEIC among the pictures",
        "`16 of 32 files are left out (16 .heic)`, said before the sweep",
        "tests/contracts/test_cli.py::test_files_that_are_left_out_are_said_before_the_sweep",
    ),
    OtherFault(
        "the validation split is called `valid/` or `validation/`",
        "taken as `val/`",
        "tests/trainables/stages/data/test_left_out.py::test_a_validation_split_has_three_names",
    ),
    OtherFault(
        "an EXIF block that Pillow cannot read",
        "a picture without rotation",
        "tests/trainables/stages/data/test_decoding.py::test_a_damaged_exif_block_is_a_picture_without_rotation",
    ),
    OtherFault(
        "GroupNorm, InstanceNorm or PReLU with structured pruning",
        "refused by the layer's type",
        "tests/trainables/stages/pruning/test_channels.py::test_layers_of_other_kinds_are_refused_by_name",
    ),
    OtherFault(
        "a network puts out NaN after the cut",
        "called nan or inf",
        "tests/trainables/stages/pruning/test_channels.py::test_nan_after_a_cut_is_called_nan",
    ),
    OtherFault(
        "`forward` writes into its input, with structured pruning",
        "cut",
        "tests/trainables/stages/pruning/test_channels.py::test_a_forward_that_writes_into_its_input_is_pruned",
    ),
    OtherFault(
        "`forward` writes into its input, before training",
        "accepted",
        "tests/trainables/stages/candidate/test_networks.py::test_a_forward_that_writes_into_its_input_is_fine",
    ),
    OtherFault(
        "TMPDIR of over 60 characters",
        "Ray's sockets lie in a short folder of their own",
        "tests/sweeps/cluster/test_ray_folder.py::test_ray_starts_where_tmpdir_is_long",
    ),
    OtherFault(
        "no HOME and no entry in passwd",
        "the process gets a name and a folder while it runs",
        "tests/sweeps/cluster/test_ray_folder.py::test_a_user_without_home_and_name_gets_both_for_as_long_as_it_takes",
    ),
    OtherFault(
        "a file system without `flock`",
        "the file system is named",
        "tests/trainables/test_locks.py::test_a_file_system_without_locks_is_named",
    ),
    OtherFault(
        "an umlaut in `--out` under an ASCII locale",
        "exit code 2: no text in this locale; set PYTHONUTF8=1",
        "tests/contracts/test_cli.py::test_a_folder_that_is_no_text_in_the_locale_is_named",
    ),
    OtherFault(
        '`--out "runs [red]x"`',
        "printed paths exist",
        "tests/sweeps/cluster/test_traffic.py::test_a_local_sweep_talks_to_loopback_alone",
    ),
    OtherFault(
        "a text begins like a formula, in a CSV",
        "a `'` stands before it",
        "tests/analysis/reading/test_doors.py::test_a_table_holds_no_formula",
    ),
    OtherFault(
        "new code prints a text past the doors that escape it",
        "a test names the line",
        "tests/trainables/config/test_escaping.py::test_texts_leave_through_the_doors_alone",
    ),
    OtherFault(
        "a user's module that ends the process or prints when imported, or has a name of this tool's",
        "exit code 2 with the line, or the name; nothing on standard output under `--json`",
        "tests/sweeps/test_users_modules.py::test_a_users_module_is_found_or_refused_by_name",
    ),
    OtherFault(
        "`sys.exit(0)` in `forward`, in a trial",
        "the trial fails with the line; it is not tried again",
        "tests/trainables/trials/test_base.py::test_a_network_that_ends_the_process_ends_the_trial_with_a_reason",
    ),
    OtherFault(
        "a module prints while a sweep runs under `--json`",
        "events are alone on standard output",
        "tests/sweeps/display/test_console.py::test_events_are_alone_on_standard_output",
    ),
    OtherFault(
        "`--dataset folder:REL` with `--address`",
        "workers get the absolute path",
        "tests/trainables/stages/data/test_left_out.py::test_workers_get_the_absolute_path_of_a_folder",
    ),
    OtherFault(
        "`| tee log` and Ctrl-C, or `| head`",
        "said once; the exit code stays the sweep's own, such as 130",
        "tests/sweeps/display/test_console.py::test_a_reader_that_leaves_ends_nothing_and_is_told_once",
    ),
    OtherFault(
        "a local sweep, with every connection watched",
        "it talks to loopback alone: all telemetry is off",
        "tests/sweeps/cluster/test_traffic.py::test_a_local_sweep_talks_to_loopback_alone",
    ),
    OtherFault(
        "`timm:NAME.TAG` without a network, and without its weights in the cache",
        "refused before anything is trained, with the command that brings them",
        "tests/trainables/stages/models/test_timm.py::"
        "test_weights_come_from_the_hubs_cache_and_where_there_are_none_it_is_said",
    ),
    OtherFault(
        "timm is not installed",
        "exit code 2 with the flag and what to install",
        "tests/trainables/stages/models/test_timm.py::test_without_timm_the_fix_is_said_with_the_flag",
    ),
    OtherFault(
        "an image's `path` in a parquet file leads out of the data set, by `..`, a root, a link or a URL",
        "the row is named; nothing outside is opened",
        "tests/trainables/stages/data/test_huggingface.py::test_paths_of_images_stay_inside_the_data_set",
    ),
    OtherFault(
        "a data set in the hub's form brings a script, or a README with patterns of files elsewhere",
        "neither is read",
        "tests/trainables/stages/data/test_huggingface.py::test_what_a_data_set_brings_is_not_executed",
    ),
    OtherFault(
        "`serve` on a port that another program has",
        "exit code 2 with the port; without `--port` it takes a free one",
        "tests/analysis/serving/test_serving_gate.py::test_a_taken_port_is_named_on_one_line",
    ),
    OtherFault(
        "`serve` without Dash",
        "exit code 2 with the extra to install",
        "tests/analysis/serving/test_serving_gate.py::test_without_dash_the_extra_is_named",
    ),
    OtherFault(
        "another user, or a web page, asks `serve` without its token",
        "403",
        "tests/analysis/serving/test_serving_gate.py::test_without_the_token_nothing_is_answered",
    ),
    OtherFault(
        "a web page whose name was made to point at `serve` (DNS rebinding)",
        "403",
        "tests/analysis/serving/test_serving_gate.py::test_another_host_is_refused",
    ),
    OtherFault(
        "a download from `serve` names a path",
        "nothing but known files of finished trials leaves",
        "tests/analysis/serving/test_serving_gate.py::test_a_path_in_a_request_leads_nowhere",
    ),
    OtherFault(
        "a trial's model is a link, or the store places it outside `--out`",
        "`serve` does not send it",
        "tests/analysis/serving/test_serving_gate.py::test_links_other_folders_and_unfinished_trials_are_refused",
    ),
)
