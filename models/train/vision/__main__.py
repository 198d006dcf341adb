from models.train.vision.train import main

main()
