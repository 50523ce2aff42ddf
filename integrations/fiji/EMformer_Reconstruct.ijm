// Reconstructs the stack in front: saves it, calls `emformer-hub reconstruct`, and opens the result and its uncertainty.
// README.md says how to install it. Without windows, as an argument: INPUT|OUTPUT|Z,Y,X in nm|MODEL|COMMAND

argument = getArgument();
if (argument != "") {
	given = split(argument, "|");
	if (given.length != 5) exit("EMformer: expected INPUT|OUTPUT|Z,Y,X|MODEL|COMMAND, found " + argument);
	reconstruct(given[0], given[1], given[2], given[3], given[4]);
} else {
	ask();
}

// Ask what is not known of the stack in front, and reconstruct it.
function ask() {
	if (nImages == 0) exit("EMformer: open a stack first.");
	getDimensions(columns, rows, channels, sections, frames);
	if (bitDepth() == 24 || channels > 1)
		exit("EMformer: expected grey values and one channel. Convert it with Image > Type > 8-bit, or choose a channel with Image > Duplicate...");
	if (frames > 1)
		exit("EMformer: found " + frames + " time points; expected sections. If they are sections, swap slices and frames in Image > Properties...");
	if (sections < 4) exit("EMformer: found " + sections + " sections; expected at least 4.");
	getVoxelSize(x, y, z, unit);
	nanometres = in_nanometres(unit);
	Dialog.create("EMformer: reconstruct");
	Dialog.addMessage("Voxel size in nm. Sections are further apart than pixels.");
	Dialog.addNumber("z", z * nanometres, 3, 9, "nm");
	Dialog.addNumber("y", y * nanometres, 3, 9, "nm");
	Dialog.addNumber("x", x * nanometres, 3, 9, "nm");
	Dialog.addString("Model", call("ij.Prefs.get", "emformer.model", "emformer-small"), 30);
	Dialog.addString("Command", call("ij.Prefs.get", "emformer.command", "emformer-hub"), 30);
	Dialog.show();
	z = Dialog.getNumber(); y = Dialog.getNumber(); x = Dialog.getNumber();
	model = Dialog.getString(); command = Dialog.getString();
	if (!(z > 0 && y > 0 && x > 0)) exit("EMformer: a voxel is longer than 0 nm along z, y and x.");
	call("ij.Prefs.set", "emformer.model", model);
	call("ij.Prefs.set", "emformer.command", command);
	folder = getDirectory("Folder for the result");
	title = getTitle();
	name = replace(File.getNameWithoutExtension(title), " ", "_");
	input = folder + name + "-stack.tif";
	if (File.exists(input)) exit("EMformer: " + input + " already exists. Choose another folder, or delete it.");
	saveAs("Tiff", input);
	rename(title);
	reconstruct(input, folder + name + "-isotropic.tif", "" + z + "," + y + "," + x, model, command);
}

// Nanometres in a unit of ImageJ; 0 if it is not a length that is known, so that it has to be typed in.
function in_nanometres(unit) {
	unit = toLowerCase(unit);
	if (unit == "nm" || unit == "nanometer" || unit == "nanometre") return 1;
	if (unit == "micron" || unit == "microns" || unit == "um" || unit == fromCharCode(181) + "m" || unit == fromCharCode(956) + "m") return 1000;
	if (unit == "mm") return 1000000;
	return 0;
}

// Call the command, which says on one stream what it did or what was wrong, and open what it wrote.
function reconstruct(input, output, size, model, command) {
	uncertainty = replace(output, ".tif", "-uncertainty.tif");
	if (!endsWith(output, ".tif")) exit("EMformer: expected an output that ends in .tif, found " + output);
	if (File.exists(output) || File.exists(uncertainty))
		exit("EMformer: " + output + " or its uncertainty already exists. Choose another folder, or delete it.");
	showStatus("EMformer: reconstructing...");
	if (startsWith(getInfo("os.name"), "Windows"))
		said = exec("cmd", "/c", command, "reconstruct", input, output, "--voxel-size", size + "nm", "--model", model, "--uncertainty", uncertainty, "2>&1");
	else
		said = exec("sh", "-c", "exec \"$0\" \"$@\" 2>&1", command, "reconstruct", input, output, "--voxel-size", size + "nm", "--model", model, "--uncertainty", uncertainty);
	if (!File.exists(output)) exit("EMformer did not finish:\n" + said);
	print(said);
	open(uncertainty);
	open(output);
}
