"""Where images come from: public archives, folders of files, Hugging Face data sets."""
