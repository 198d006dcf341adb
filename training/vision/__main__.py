from training.vision.train import main

main()
